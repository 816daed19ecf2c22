"""The command ``cast-kernels``."""

import argparse
from collections.abc import Sequence

from cast_kernels._version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code (1 if ``doctor`` finds an op that is wrong)."""
    parser = argparse.ArgumentParser(prog="cast-kernels", description="The ops underneath CAST.")
    parser.add_argument("--version", action="version", version=f"cast-kernels {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="what each op runs on here, why, and whether it is right")
    parser.parse_args(argv)

    from cast_kernels import doctor

    findings = doctor.diagnose()
    print(doctor.render(findings))
    return int(any(finding.problem is not None for finding in findings))
