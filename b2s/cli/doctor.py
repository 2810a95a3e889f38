"""`b2s doctor`: is everything there that a backup needs, and how is it cured if not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from b2s.cli.invocation import Invocation
from b2s.cli.options import Command, json_option
from b2s.cli.output import print_json, print_paragraph, print_text
from b2s.core.text import counted, escaped
from b2s.errors import B2sError

if TYPE_CHECKING:
    from b2s.doctor.finding import Finding

_COLOURS = {"ok": "32", "warning": "33", "problem": "31"}  # SGR parameters
_LABEL_CELLS = 9  # "warning" and a gap


@click.command("doctor", cls=Command)
@json_option
@click.pass_obj
def command(invocation: Invocation, as_json: bool) -> int:
    """Check this host, the sources, the spool and the bucket, and say how to cure what is wrong.

    Nothing is changed; two probe objects are written to the bucket and removed again. Exits 1 when there is a problem.
    """
    settings = invocation.settings()
    from b2s.doctor.examination import examine
    from b2s.processes.signals import StopRequest

    stop = StopRequest.install()
    findings: list[Finding] = []
    with stop.interrupting():
        for finding in examine(settings, stop.check):
            findings.append(finding)
            if not as_json:
                _print(finding)
    if as_json:
        print_json(
            {
                "findings": [
                    {"check": each.check, "level": str(each.level), "detail": each.detail, "cure": each.cure}
                    for each in findings
                ]
            }
        )
    problems = [finding for finding in findings if finding.level == "problem"]
    warnings = sum(finding.level == "warning" for finding in findings)
    invocation.results.append({"findings": len(findings), "problems": len(problems), "warnings": warnings})
    if not as_json:
        print_text(
            f"{counted(len(findings), 'finding')}: {counted(len(problems), 'problem')}, {counted(warnings, 'warning')}"
        )
    if not problems:
        return 0
    first = problems[0]
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems, the first"
    invocation.error = B2sError(f"{count}: {first.check}: {first.detail}", hint=first.cure)
    return invocation.error.exit_code


def _print(finding: Finding) -> None:
    """Print one finding as it comes: the level first, so that the eye finds it; the cure below."""
    label = f"{finding.level:<{_LABEL_CELLS}}"
    print_paragraph(label, f"{finding.check}: {escaped(finding.detail)}", style=_COLOURS[finding.level])
    if finding.cure and finding.level != "ok":
        print_paragraph(" " * _LABEL_CELLS, f"cure: {escaped(finding.cure)}")
