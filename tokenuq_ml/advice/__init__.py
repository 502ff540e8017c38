"""Which objective a study should try, by what its own tables have in common with measured studies."""
