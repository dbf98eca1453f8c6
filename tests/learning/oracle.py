"""ByzFL's aggregators (MIT License, EPFL), as others' word on what a rule gives.

The package imports its training framework, and with it torchvision, which would replace torch; so these two modules are
loaded under a parent that imports nothing.  `packaging/setup.sh` puts them beside the environment's own packages, where
`pip check` does not ask for what they depend on.
"""

import importlib
import sys
import types
from importlib.machinery import PathFinder
from pathlib import Path

_found = PathFinder.find_spec("byzfl", [str(Path(sys.prefix) / "oracle"), *sys.path])
if _found is None:
    raise ModuleNotFoundError("byzfl is missing; `make setup` installs it (packaging/setup.sh)")
_parent = types.ModuleType("byzfl")
_parent.__path__ = list(_found.submodule_search_locations or ())
sys.modules["byzfl"] = _parent

aggregators = importlib.import_module("byzfl.aggregators.aggregators")
preaggregators = importlib.import_module("byzfl.aggregators.preaggregators")
