"""A failing test shows its own log, not the thousands of lines that DCP writes at level DEBUG."""

import logging

logging.getLogger("c10d-NullHandler-dcp_logger").setLevel(logging.WARNING)
