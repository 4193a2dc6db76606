"""The wire's types: requests as pydantic models with their bounds, responses as typed dictionaries."""
