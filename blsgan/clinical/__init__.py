"""Results as DICOM objects for clinical systems; needs highdicom (the extra ``clinical``)."""
