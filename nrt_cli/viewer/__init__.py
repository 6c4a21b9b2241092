"""What a browser is shown of the store: screens with addresses, a server that follows runs, a folder without one."""
