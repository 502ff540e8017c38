"""Jobs, schedules, sensors and staleness: what is rebuilt, and when."""
