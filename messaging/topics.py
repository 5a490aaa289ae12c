"""Names of topics and subscriptions, as the other systems know them (docs/api.md)."""

DEAD_LETTER_SUBSCRIPTION = "workernode"


def request_topic(model_name: str) -> str:
    return f"model-{model_name}"


def subscription(model_name: str) -> str:
    return f"model-{model_name}-subscription"


def dead_letter_topic(model_name: str) -> str:
    return f"model-{model_name}-{subscription(model_name)}-DLQ"
