"""How models judge texts: what each family of guards is asked, and what its answer means. Pure: it runs no model."""
