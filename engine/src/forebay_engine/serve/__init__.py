"""`forebay-engine serve`: an inference engine from a typed profile, supervised."""
