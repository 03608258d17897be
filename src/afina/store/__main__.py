"""Print the JSON schema of `result.json`: `python -m afina.store > docs/result.schema.json`."""

import json

from afina.store.result import result_schema

print(json.dumps(result_schema(), indent=2))
