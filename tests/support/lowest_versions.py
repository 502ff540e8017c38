"""Print the lowest version of each requirement that pyproject.toml allows, as arguments for `pip install`.

    python -m tests.support.lowest_versions

pip itself resolves to the newest versions only.
"""

import tomllib

from packaging.requirements import Requirement

from tests.support.paths import ROOT


def lowest_versions() -> list[str]:
    """Return `name==version` of the requirements of the package without extras.

    Raises:
        ValueError: a requirement has no lowest version.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = []
    for requirement in map(Requirement, project["dependencies"]):
        lowest = [part.version for part in requirement.specifier if part.operator == ">="]
        if len(lowest) != 1:
            raise ValueError(
                f"pyproject.toml: {requirement} has no lowest version; add one, as in {requirement.name}>=1.0"
            )
        found.append(f"{requirement.name}=={lowest[0]}")
    return found


if __name__ == "__main__":
    print(*lowest_versions())
