#!/bin/sh
# Makes the template and the endpoint; needs curl, Python 3 and RUNPOD_API_KEY.
set -eu
cd "$(dirname "$0")"
: "${RUNPOD_API_KEY:?set it}"

# call MUTATION TYPE FILE [TEMPLATE_ID]: prints the id of what was made.
call() {
  python3 - "$@" <<'PY' | curl -fsS https://api.runpod.io/graphql \
    -H "Authorization: Bearer $RUNPOD_API_KEY" -H 'Content-Type: application/json' --data @- |
import json, sys
mutation, kind, file, *template = sys.argv[1:]
value = json.load(open(file))
if template:
    value["templateId"] = template[0]
query = "mutation make($value: %s!) { %s(input: $value) { id } }" % (kind, mutation)
print(json.dumps({"query": query, "variables": {"value": value}}))
PY
    python3 -c '
import json, sys
answer = json.load(sys.stdin)
if answer.get("errors"):
    sys.exit("RunPod: " + answer["errors"][0]["message"])
print(answer["data"][sys.argv[1]]["id"])' "$1"
}

template=$(call saveTemplate SaveTemplateInput template.json)
endpoint=$(call saveEndpoint EndpointInput endpoint.json "$template")
echo "https://$endpoint.api.runpod.ai"
