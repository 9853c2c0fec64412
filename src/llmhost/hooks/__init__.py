"""The plugin contract: what can be asked, who is loaded, and how a call is made. The only importer of pluggy."""
