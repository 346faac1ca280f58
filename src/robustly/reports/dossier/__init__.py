"""The dossier of a model: threat, data, attacks, limits and a checklist, answered from the evidence."""
