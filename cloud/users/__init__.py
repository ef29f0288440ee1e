"""Who may do what: tenants, users with a role, API keys."""
