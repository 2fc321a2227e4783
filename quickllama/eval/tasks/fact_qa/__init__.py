"""Questions about one of many short documents."""
