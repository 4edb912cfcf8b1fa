"""Growing and shrinking a trained network: where its blocks are, what is put in or taken out, what stays as it was."""
