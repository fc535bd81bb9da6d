//! `crm-schema LIBRARY CONTROL OUT`: the install script of the extension, from the library that was built.
//!
//! pgrx leaves a description of every SQL object in the section `.pgrxsc` of the shared library. `cargo pgrx schema`
//! reads it and prints SQL; this program does the same with the same crate, so that building, testing and installing
//! need no `cargo-pgrx`, which alone takes longer to compile than the extension (docs/adr/0001-workspace.md).

use std::error::Error;
use std::path::PathBuf;

use object::{Object, ObjectSection};
use pgrx_sql_entity_graph::section::{decode_entities, is_schema_section_name};
use pgrx_sql_entity_graph::{ControlFile, PgrxSql, SqlGraphEntity};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(library), Some(control), Some(out), None) =
        (args.next(), args.next(), args.next(), args.next())
    else {
        return Err("usage: crm-schema LIBRARY CONTROL OUT".into());
    };

    let bytes =
        std::fs::read(&library).map_err(|e| format!("cannot read {}: {e}", library.display()))?;
    let section = schema_section(&bytes)?.ok_or_else(|| {
        format!(
            "{} has no pgrx schema section; was it built by `cargo build --lib`?",
            library.display()
        )
    })?;

    let control = ControlFile::from_path_with_cargo_version(&control, env!("CARGO_PKG_VERSION"))?;
    let mut entities = vec![SqlGraphEntity::ExtensionRoot(control)];
    entities.extend(decode_entities(section)?);
    PgrxSql::build(entities.into_iter(), "pg_crm_sync".to_owned(), false)?.to_file(&out)?;
    Ok(())
}

/// The bytes of the section that pgrx writes, `None` when the library has none.
fn schema_section(library: &[u8]) -> Result<Option<&[u8]>, object::Error> {
    let file = object::File::parse(library)?;
    for section in file.sections() {
        if is_schema_section_name(section.name()?) {
            return section.data().map(Some);
        }
    }
    Ok(None)
}
