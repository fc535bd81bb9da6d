//! crm-emulator.
fn main() {}
