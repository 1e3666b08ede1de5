//! Manual pages and long documents as Debian wants them (Debian Policy 12.1 and 12.3): `gzip -9n`.

use std::fs::{self, File};
use std::path::Path;

use anyhow::Context as _;
use flate2::{Compression, GzBuilder};

/// Compresses all that is in a folder, in their places. cargo-deb does so only with what cargo has not
/// built.
pub(super) fn compress(folder: &Path) -> anyhow::Result<()> {
    let pages = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    // All of them before the first is compressed: that is a new file in the folder.
    let pages = pages.collect::<Result<Vec<_>, _>>()?;
    for page in pages {
        let page = page.path();
        compress_page(&page).with_context(|| format!("compressing {}", page.display()))?;
    }
    Ok(())
}

/// Without name and time, the same page is always the same file.
fn compress_page(page: &Path) -> anyhow::Result<()> {
    let mut name = page.as_os_str().to_owned();
    name.push(".gz");
    let mut gzip = GzBuilder::new().write(File::create(name)?, Compression::best());
    std::io::copy(&mut File::open(page)?, &mut gzip)?;
    gzip.finish()?;
    fs::remove_file(page).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn a_page_is_compressed_without_its_name_and_time() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("x.1"), ".TH x 1\n").unwrap();
        fs::write(folder.path().join("y.1"), ".TH y 1\n").unwrap();
        compress(folder.path()).unwrap();
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["x.1.gz", "y.1.gz"]);
        let packed = fs::read(folder.path().join("x.1.gz")).unwrap();
        let gzip = GzDecoder::new(&*packed);
        let header = gzip.header().unwrap();
        assert_eq!((header.filename(), header.mtime()), (None, 0));
        let mut page = String::new();
        GzDecoder::new(&*packed).read_to_string(&mut page).unwrap();
        assert_eq!(page, ".TH x 1\n");
    }
}
