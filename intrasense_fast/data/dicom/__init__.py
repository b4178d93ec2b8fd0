"""Pictures in DICOM files, by the package pydicom (extra `dicom`), which is imported when one is
met."""
