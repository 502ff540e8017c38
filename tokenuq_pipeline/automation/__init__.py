"""Staleness, jobs, schedules and sensors: what is rebuilt, and when."""
