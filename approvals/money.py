"""How people see an amount."""

from decimal import Decimal


def text(amount: Decimal | None, currency: str) -> str:
    """Return `1,234.50 EUR`; "—" for a request without an amount."""
    return "—" if amount is None else f"{amount:,.2f} {currency}"
