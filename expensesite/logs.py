"""The log lines of refused requests."""

import logging


class OneLine(logging.Filter):
    """Log an answer below 500 in one line.

    Django adds a traceback to each 403 and 400, although the request is at fault and not the site.
    The text of the request may contain line breaks that would forge further lines.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if 400 <= getattr(record, "status_code", 0) < 500:
            message = record.getMessage()
            if not message.isprintable():
                message = message.encode("unicode_escape").decode("ascii")
            record.msg, record.args = message, None
            record.exc_info = record.exc_text = None
        return True
