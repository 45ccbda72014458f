"""Take over the tokens that installations made before access.Token; they go on working."""

import hashlib

from django.conf import settings
from django.db import migrations

COLUMNS = "digest, token_key, user_id, created, expiry"


def take_over(apps, schema_editor):
    connection = schema_editor.connection
    if "knox_authtoken" not in connection.introspection.table_names():
        return
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO access_token ({COLUMNS}, password_fingerprint) "
            f"SELECT {COLUMNS}, '' FROM knox_authtoken"
        )
    Token = apps.get_model("access", "Token")
    for token in Token.objects.select_related("user"):
        token.password_fingerprint = hashlib.sha256(token.user.password.encode()).hexdigest()
        token.save(update_fields=["password_fingerprint"])
    with connection.cursor() as cursor:
        # Its foreign key would keep Django from deleting users.
        cursor.execute("DROP TABLE knox_authtoken")


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0001_token"),
        ("auth", "0012_alter_user_first_name_max_length"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [migrations.RunPython(take_over, migrations.RunPython.noop)]
