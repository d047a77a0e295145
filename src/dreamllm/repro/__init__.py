"""What looks at finished runs: the audit, the report, and the plan of what a run costs. Nothing else imports it."""
