"""x."""

from starlette.applications import Starlette


def endpoints_of(app: Starlette) -> set[str]:
    """Return the first parts of the paths that the application serves as anything but a page of the UI."""
    parts = {str(getattr(route, "path", "")).strip("/").partition("/")[0] for route in app.routes}
    return {part for part in parts if part and not part.startswith("{")}
