"""Bodies and answers of the REST API, as its OpenAPI document describes them."""
