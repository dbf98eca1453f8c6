"""Prints what the examination finds, as it finds it."""

from __future__ import annotations

import json

import trio

from p2pdfl.doctor.examination import Options, examine
from p2pdfl.doctor.finding import Finding, is_well


def run(options: Options, *, as_json: bool) -> bool:
    """Whether nothing failed."""
    findings: list[Finding] = []

    def tell(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            print("\n".join(finding.lines()), flush=True)

    trio.run(examine, options, tell)
    well = is_well(findings)
    if as_json:
        print(json.dumps({"ok": well, "findings": [finding.as_json() for finding in findings]}, indent=2))
    return well
