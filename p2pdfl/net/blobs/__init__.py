"""A body by its digest: who has it, and how it comes."""
