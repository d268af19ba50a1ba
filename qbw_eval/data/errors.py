"""What goes wrong with data."""

from schemas.errors import QBWError


class DataError(QBWError):
    """A data source cannot give what was asked of it."""
