"""The sky: a calendar of celestial events for any year and place, and the audit of a published one."""
