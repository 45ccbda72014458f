"""Payments: the protocol, and the built-in one, which stores charges and takes no money."""

from decimal import Decimal
from typing import Any, Protocol

from orders.integrations import NEWEST, Declined, new_id, stored_once
from orders.models import Charge


class Payments(Protocol):
    def charge(self, key: str, *, amount: Decimal, currency: str, method: str) -> str:
        """Take the money, and return the id of the charge. Raises Declined."""

    def refund(self, key: str) -> None:
        """Undo :meth:`charge`, found by the key: return all of the money."""

    def find(self, charge_id: str) -> dict[str, Any] | None:
        """Return `{"charge_id", "amount", "currency", "payment_method", "idempotency_key",
        "status"}`; the status is "charged" or "refunded"."""

    def snapshot(self) -> list[dict[str, Any]]:
        """Return the charges, newest first, each as :meth:`find` does."""


class DatabasePayments:
    """A charge is a row; a refund changes its state."""

    def charge(self, key: str, *, amount: Decimal, currency: str, method: str) -> str:
        charge, _ = stored_once(
            Charge,
            key,
            charge_id=new_id("TXN", 6),
            state=Charge.State.CHARGED,
            amount=amount,
            currency=currency,
            payment_method=method,
        )
        if charge.state == Charge.State.REFUNDED:
            raise Declined("The payment was refunded.")
        return str(charge.charge_id)

    def refund(self, key: str) -> None:
        charge, made = stored_once(
            Charge, key, charge_id=new_id("TXN", 6), state=Charge.State.REFUNDED, amount=Decimal(0)
        )
        if not made:
            Charge.objects.filter(pk=charge.pk, state=Charge.State.CHARGED).update(
                state=Charge.State.REFUNDED
            )

    def find(self, charge_id: str) -> dict[str, Any] | None:
        charge = Charge.objects.filter(charge_id=charge_id, amount__gt=0).first()
        return _charge(charge) if charge else None

    def snapshot(self) -> list[dict[str, Any]]:
        return [_charge(charge) for charge in Charge.objects.filter(amount__gt=0)[:NEWEST]]


def _charge(charge: Charge) -> dict[str, Any]:
    return {
        "charge_id": charge.charge_id,
        "amount": str(charge.amount),
        "currency": charge.currency,
        "payment_method": charge.payment_method,
        "idempotency_key": charge.key,
        "status": charge.state,
    }
