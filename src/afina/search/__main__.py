"""Print the JSON schema of a search space: `python -m afina.search > docs/space.schema.json`."""

import json

from afina.search import space_schema

print(json.dumps(space_schema(), indent=2))
