"""A pool of engines from one profile: so many warm, so many parked, and what a start costs."""
