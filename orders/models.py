"""Orders, the stock, and the records of the built-in integrations."""

import uuid
from datetime import datetime
from typing import Any, ClassVar

from django.conf import settings
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import Q

from access.text import ID_LENGTH, TEXT_LENGTH, OpaqueIdField, validate_opaque_id
from approvals import money
from approvals.models import AppendOnlyModel, Approval, CurrencyField
from worker import contracts


class State(models.TextChoices):
    """PENDING → RUNNING → COMPLETED; RUNNING → COMPENSATING → FAILED | CANCELLED;
    PENDING → CANCELLED | FAILED, where nothing has to be undone; FAILED → PENDING | RUNNING by a
    retry.
    """

    PENDING = contracts.PENDING, "pending approval"
    RUNNING = contracts.RUNNING, "running"
    COMPENSATING = contracts.COMPENSATING, "compensating"
    COMPLETED = contracts.ORDER_COMPLETED, "completed"
    CANCELLED = contracts.ORDER_CANCELLED, "cancelled"
    FAILED = contracts.FAILED, "failed"


FINAL = (State.COMPLETED, State.CANCELLED, State.FAILED)
# The states in which a compensated order ends.
UNDONE = (State.CANCELLED, State.FAILED)


class Length(models.Func):
    """The number of elements of a JSON list."""

    function = "JSONB_ARRAY_LENGTH"
    output_field = models.IntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, function="JSON_ARRAY_LENGTH")


class Order(models.Model):
    """One purchase order, from its submission to its end."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    order_id = OpaqueIdField(
        "order ID", max_length=ID_LENGTH, unique=True, validators=[validate_opaque_id]
    )
    workflow_id = OpaqueIdField("workflow ID", max_length=2 * ID_LENGTH, unique=True)
    state = models.CharField(max_length=12, choices=State, db_index=True)
    # Starts at 1; each retry adds one. A run that is started again keeps its attempt.
    attempt = models.PositiveIntegerField(default=1)
    # The names of the steps of this attempt, in their sequence. A step that a later version of the
    # product adds is not among them.
    step_names = models.JSONField(default=contracts.saga_step_names)
    # How many of them have begun; a compensation undoes these. Each step is counted before it can
    # take effect.
    steps_begun = models.PositiveSmallIntegerField(default=0)
    submitter = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT
    )
    customer_id = models.CharField("customer ID", max_length=ID_LENGTH)
    customer_name = models.CharField(max_length=200, blank=True)
    customer_email = models.EmailField("customer e-mail", blank=True)
    shipping_address = models.TextField(max_length=TEXT_LENGTH, blank=True)
    payment_method = models.CharField(max_length=ID_LENGTH)
    total = models.DecimalField(max_digits=14, decimal_places=2)
    currency = CurrencyField()
    # Null where the order needs no decision. A retry replaces an approval that nobody decided.
    approval = models.OneToOneField(Approval, null=True, blank=True, on_delete=models.PROTECT)
    # How long an order waits for a decision, once its workflow begins to wait.
    approval_seconds = models.PositiveIntegerField()
    # Signals up to this event of this run were refused; each has one audit entry.
    signals_run = models.CharField(max_length=100, blank=True)
    signals_event = models.PositiveBigIntegerField(default=0)
    # The step after which a failure is injected (requirements O6).
    fail_at = models.CharField(max_length=20, blank=True)
    # How the order ends after its compensation, and why.
    ends_as = models.CharField(max_length=12, blank=True, choices=[(s, s.label) for s in UNDONE])
    failure_reason = models.TextField(blank=True)
    created_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["-created_at", "-id"]
        indexes = [models.Index(fields=["-created_at", "-id"], name="order_newest_first")]
        permissions: ClassVar = [
            ("submit_order", "Can submit orders"),
            ("decide_order", "Can approve and reject orders"),
            ("operate_order", "Can cancel and retry orders"),
            ("carry_order", "Can carry out the steps of orders"),
        ]
        constraints = [
            models.CheckConstraint(
                name="order_id_not_empty", condition=~Q(order_id="") & ~Q(workflow_id="")
            ),
            models.CheckConstraint(
                name="order_attempt_and_total_positive", condition=Q(attempt__gte=1, total__gt=0)
            ),
            # Only these states exist. Triggers refuse an order that runs over an approval that is
            # not APPROVED (expensesite.guards).
            models.CheckConstraint(
                name="order_state_known",
                condition=Q(state=State.PENDING, approval__isnull=False)
                | Q(state__in=[state for state in State if state != State.PENDING]),
            ),
            models.CheckConstraint(
                name="order_ends_as_tied_to_state",
                condition=Q(state=State.COMPENSATING, ends_as__in=UNDONE)
                | Q(state=State.CANCELLED, ends_as=State.CANCELLED)
                | Q(state=State.FAILED, ends_as=State.FAILED)
                | Q(state__in=[State.PENDING, State.RUNNING, State.COMPLETED], ends_as=""),
            ),
            models.CheckConstraint(
                name="order_completed_after_all_steps",
                condition=~Q(state=State.COMPLETED) | Q(steps_begun=Length("step_names")),
            ),
            models.CheckConstraint(
                name="order_ended_at_tied_to_state",
                condition=Q(state__in=FINAL, ended_at__isnull=False)
                | (~Q(state__in=FINAL) & Q(ended_at__isnull=True)),
            ),
        ]

    def __str__(self) -> str:
        return str(self.order_id)

    @property
    def expires_at(self) -> datetime | None:
        return self.approval.expires_at if self.approval else None

    def money(self) -> str:
        """Return the total as people read it: `1,899.97 USD`."""
        return money.text(self.total, self.currency)

    def sample_money(self) -> str:
        """Return the total as the published samples print it: `$1899.97`."""
        return f"${self.total:.2f}" if self.currency == "USD" else self.money()

    def idempotency_key(self, attempt: int) -> str:
        """Return the key by which the integrations know an attempt. For a key, each does its work
        once, and an undo is permanent."""
        return f"{self.pk}:{attempt}"


class OrderLine(models.Model):
    """A product of an order, at the price of the time when the order was submitted."""

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="lines")
    product_id = models.CharField("product ID", max_length=ID_LENGTH)
    name = models.CharField(max_length=200)
    quantity = models.PositiveIntegerField()
    unit_price = models.DecimalField(max_digits=12, decimal_places=2)

    class Meta:
        ordering: ClassVar = ["pk"]
        constraints = [
            models.UniqueConstraint(
                name="order_has_a_product_once", fields=["order", "product_id"]
            ),
            models.CheckConstraint(
                name="order_line_positive", condition=Q(quantity__gte=1, unit_price__gte=0)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.quantity} of {self.name}"


class OrderStep(AppendOnlyModel):
    """The result of a step or of its undo: a line of the timeline, and the answer to a repeat."""

    class Status(models.TextChoices):
        COMPLETED = "completed", "completed"
        FAILED = "failed", "failed"
        COMPENSATED = "compensated", "compensated"

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="steps")
    attempt = models.PositiveIntegerField()
    name = models.CharField(max_length=40)
    status = models.CharField(max_length=12, choices=Status)
    message = models.TextField(blank=True)
    result = models.JSONField(default=dict)
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["pk"]
        constraints = [
            models.UniqueConstraint(
                name="step_once_an_attempt", fields=["order", "attempt", "name", "status"]
            ),
            models.CheckConstraint(
                name="step_status_known",
                condition=Q(status__in=["completed", "failed", "compensated"]),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} {self.status}"


# The records of the built-in integrations. Like remote services, they know orders only by a key.


class StockItem(models.Model):
    """A product, its pieces that can be ordered, and its pieces that running orders reserve."""

    product_id = OpaqueIdField(
        "product ID", max_length=ID_LENGTH, unique=True, validators=[validate_opaque_id]
    )
    name = models.CharField(max_length=200)
    unit_price = models.DecimalField(
        max_digits=12, decimal_places=2, validators=[MinValueValidator(0)]
    )
    currency = CurrencyField(default="USD")
    available = models.PositiveIntegerField(default=0)
    reserved = models.PositiveIntegerField(default=0, editable=False)

    class Meta:
        ordering: ClassVar = ["product_id"]
        constraints = [
            models.CheckConstraint(
                name="stock_never_negative",
                condition=Q(available__gte=0, reserved__gte=0, unit_price__gte=0),
            )
        ]

    def __str__(self) -> str:
        return str(self.product_id)


class Reservation(models.Model):
    """The pieces that an attempt of an order holds.

    Where a release comes before its reservation, the released row has no items and keeps the late
    reservation from taking any.
    """

    class State(models.TextChoices):
        RESERVED = "reserved", "reserved"
        RELEASED = "released", "released"
        FULFILLED = "fulfilled", "fulfilled"

    key = models.CharField(max_length=100, unique=True)
    reservation_id = models.CharField("reservation ID", max_length=20, unique=True)
    state = models.CharField(max_length=10, choices=State)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="reservation_state_known",
                condition=Q(state__in=["reserved", "released", "fulfilled"]),
            )
        ]

    def __str__(self) -> str:
        return str(self.reservation_id)


class ReservedItem(models.Model):
    """Pieces of one product in a reservation."""

    reservation = models.ForeignKey(Reservation, on_delete=models.CASCADE, related_name="items")
    item = models.ForeignKey(StockItem, on_delete=models.PROTECT)
    quantity = models.PositiveIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                name="reservation_has_an_item_once", fields=["reservation", "item"]
            ),
            models.CheckConstraint(name="reserved_positive", condition=Q(quantity__gte=1)),
        ]

    def __str__(self) -> str:
        return f"{self.quantity} of {self.item_id}"


class Charge(models.Model):
    """The money taken for an attempt of an order.

    Where a refund comes before its charge, the refunded row has the amount 0 and keeps the late
    charge from taking money.
    """

    class State(models.TextChoices):
        CHARGED = "charged", "charged"
        REFUNDED = "refunded", "refunded"

    key = models.CharField(max_length=100, unique=True)
    charge_id = models.CharField("charge ID", max_length=20, unique=True)
    state = models.CharField(max_length=10, choices=State)
    amount = models.DecimalField(max_digits=14, decimal_places=2)
    currency = models.CharField(max_length=3, blank=True)
    payment_method = models.CharField(max_length=ID_LENGTH, blank=True)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["-pk"]
        constraints = [
            models.CheckConstraint(
                name="charge_takes_something",
                condition=Q(state="charged", amount__gt=0) | Q(state="refunded", amount__gte=0),
            )
        ]

    def __str__(self) -> str:
        return str(self.charge_id)


class WarehouseRecord(models.Model):
    """A request to the warehouse to send the pieces of an order.

    Where a revert comes before its request, the reverted row has no items and keeps the late
    request from sending any.
    """

    class State(models.TextChoices):
        APPLIED = "applied", "applied"
        REVERTED = "reverted", "reverted"

    key = models.CharField(max_length=100, unique=True)
    order_id = models.CharField("order ID", max_length=ID_LENGTH)
    # [{"product_id": str, "quantity": int}, …]
    items = models.JSONField()
    state = models.CharField(max_length=10, choices=State)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["-pk"]
        constraints = [
            models.CheckConstraint(
                name="warehouse_record_state_known",
                condition=Q(state__in=["applied", "reverted"]),
            )
        ]

    def __str__(self) -> str:
        return f"warehouse record of {self.order_id}"


class Shipment(models.Model):
    """The delivery of the pieces of a warehouse record."""

    record = models.OneToOneField(WarehouseRecord, on_delete=models.CASCADE)
    tracking_number = models.CharField(max_length=30, unique=True)
    address = models.TextField(blank=True)
    estimated_delivery = models.DateField()

    def __str__(self) -> str:
        return str(self.tracking_number)


class Mail(models.Model):
    """A message to a customer."""

    key = models.CharField(max_length=100, unique=True)
    recipient = models.CharField(max_length=254)
    subject = models.CharField(max_length=200)
    body = models.TextField()
    at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return str(self.subject)
