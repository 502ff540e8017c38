"""`tokenuq doctor`: is everything there that a run needs, and what to do where it is not."""

import argparse
import json

from tokenuq_ml.control_characters import escaped
from tokenuq_ml.redaction import redacted, redacted_values
from tokenuq_pipeline.commands import FAILED

SUBJECTS = ("versions", "device", "disk", "hub", "configuration", "store", "instance")
"""The keys of `doctor_checks.CHECKS`, which is not imported for the parser."""
SIGNS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


def add_parser(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "doctor",
        help="check versions, device, disks, hub, configuration, store and Dagster's records",
        description="Looks at everything that a run needs and says what to do where something is wrong. Creates the "
        "folder of Dagster's records if it is missing, and changes nothing else. Exit code 1 if there is a problem.",
    )
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"only these: {', '.join(SUBJECTS)}")
    parser.add_argument("--json", action="store_true", help="print a list of findings as JSON")
    parser.set_defaults(function=doctor_command)


def doctor_command(options: argparse.Namespace) -> int:
    """Run `tokenuq doctor`."""
    from tokenuq_ml.errors import InputError
    from tokenuq_pipeline.commands.doctor_checks import examine

    if unknown := [name for name in options.subjects if name not in SUBJECTS]:
        raise InputError(f"doctor: no subject {unknown[0]!r}; there are {', '.join(SUBJECTS)}")
    findings = []
    for finding in examine(options.subjects or list(SUBJECTS)):
        findings.append(finding)
        if not options.json:
            print(escaped(redacted(_line(finding))), flush=True)
    problems = sum(finding.state == "problem" for finding in findings)
    if options.json:
        print(json.dumps(redacted_values([finding._asdict() for finding in findings]), indent=1))
    else:
        print("\n" + (f"{problems} problem{'s' * (problems > 1)}" if problems else "no problem found"))
    return FAILED if problems else 0


def _line(finding) -> str:
    fix = f"\n{'':24}-> {finding.fix}" if finding.fix else ""
    return f"{finding.subject:14} {SIGNS[finding.state]:8} {finding.found}{fix}"
