"""`tokenuq doctor`: is everything there that a run needs, and what to do where it is not."""

import argparse

from tokenuq_ml.control_characters import escaped
from tokenuq_ml.redaction import redacted
from tokenuq_pipeline.commands import FAILED
from tokenuq_pipeline.commands.json_output import add_json, print_json

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
    add_json(parser, "print the findings as JSON: a list of objects")
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
        print_json([finding._asdict() for finding in findings])
    else:
        print("\n" + (f"{problems} problem{'s' * (problems > 1)}" if problems else "no problem found"))
    return FAILED if problems else 0


def _line(finding) -> str:
    fix = f"\n{'':24}-> {finding.fix}" if finding.fix else ""
    return f"{finding.subject:14} {SIGNS[finding.state]:8} {finding.found}{fix}"
