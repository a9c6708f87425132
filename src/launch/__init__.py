"""Start and watch the ranks that a rank table gives to this server; copy files on ModelArts."""
