"""openrouter."""

from forebay.upstreams.kind import Kind

KIND = Kind(name="openrouter")
