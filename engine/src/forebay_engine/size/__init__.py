"""What a model needs and what a GPU gives it: `forebay-engine size`."""
