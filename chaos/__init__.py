"""`make chaos`: Vade under faults, all of it real processes, and an audit that shares no code with it."""
