"""A token that was made for a person never becomes a service's."""

from django.db import migrations, models


def mark(apps, schema_editor):
    tokens = apps.get_model("access", "Token").objects
    tokens.filter(user__groups__name="Worker").update(made_for_service=True)


class Migration(migrations.Migration):
    dependencies = [("access", "0002_tokens_of_knox")]

    operations = [
        migrations.AddField("token", "made_for_service", models.BooleanField(default=False)),
        migrations.RunPython(mark, migrations.RunPython.noop),
    ]
