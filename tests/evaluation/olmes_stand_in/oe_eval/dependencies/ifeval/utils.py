import nowhere.part  # noqa: F401
