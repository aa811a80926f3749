"""Files that are whole or not there."""

import json
import os
from pathlib import Path


def write_json(path, content):
    """Writes JSON under a temporary name and renames it."""
    temporary = Path(path).with_name(f".{Path(path).name}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
