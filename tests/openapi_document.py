"""Prints the OpenAPI document, for tools that read it from a file: `make lint-openapi`."""

import json
import sys

from config import Settings
from tests.api import description
from wsgi import create_app

# No database is asked, and no key made.
NOWHERE = {
    "DATABASE_URL": "postgresql://localhost/none",
    "JWT_SECRET_KEY": "a key that signs nothing: 32 bytes",
}

if __name__ == "__main__":
    json.dump(description(create_app(Settings.from_env(NOWHERE))), sys.stdout, ensure_ascii=False, indent=1)
