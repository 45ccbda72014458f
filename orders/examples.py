"""The example products, which `make up` adds to the stock (requirements O8)."""

from decimal import Decimal
from typing import Final

from orders.models import StockItem

# Product, name, unit price in USD, pieces. The products of the published samples, of the example
# orders of `startorder` (O8), and two on either side of the approval threshold (O1).
EXAMPLE_PRODUCTS: Final = (
    ("SKU-001", "Desk lamp", "24.50", 25),
    ("SKU-002", "Office chair", "699.00", 10),
    ("SKU-003", "Notebook", "9.95", 50),
    ("PROD-101", "Wireless mouse", "29.99", 100),
    ("PROD-102", "USB cable", "9.99", 100),
    ("PROD-201", "Laptop computer", "1299.99", 100),
    ("PROD-202", "External monitor", "299.99", 100),
    ("SKU-1000", "At the threshold", "1000.00", 100),
    ("SKU-1001", "A cent above the threshold", "1000.01", 100),
)


def stock_examples() -> None:
    """Add the example products that the stock lacks."""
    for product_id, name, price, pieces in EXAMPLE_PRODUCTS:
        StockItem.objects.get_or_create(
            product_id=product_id,
            defaults={"name": name, "unit_price": Decimal(price), "available": pieces},
        )
