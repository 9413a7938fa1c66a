//! A disk that is full when the test wants it.
#![cfg(target_os = "linux")]

use std::io::ErrorKind;

use larder_testkit::SmallDisk;

const MIB: u64 = 1 << 20;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_small_disk_fills_up_and_is_freed_or_says_that_it_needs_root() {
    let disk = match SmallDisk::mount(2 * MIB) {
        Ok(disk) => disk,
        Err(error) if !is_root() => {
            assert!(error.to_string().contains("needs root"), "{error}");
            return;
        }
        Err(error) => panic!("{error:?}"),
    };
    let file = disk.path().join("file");
    std::fs::write(&file, vec![1; 1000]).unwrap();
    let room = disk.available().unwrap();
    assert!(room > MIB && room <= 2 * MIB, "{room}");
    assert_eq!(disk.fill_up().unwrap(), room);
    assert_eq!(disk.available().unwrap(), 0);
    let error = std::fs::write(disk.path().join("more"), vec![1; 5000]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(disk.fill_up().unwrap(), 0);
    disk.free().unwrap();
    disk.free().unwrap();
    std::fs::write(disk.path().join("more"), vec![1; 5000]).unwrap();
    assert_eq!(std::fs::read(file).unwrap(), vec![1; 1000]);
}

#[test]
fn a_dropped_disk_is_unmounted_and_removed_even_with_a_file_open() {
    if !is_root() {
        assert!(SmallDisk::mount(MIB).is_err());
        return;
    }
    let disk = SmallDisk::mount(MIB).unwrap();
    let root = disk.path().parent().unwrap().to_owned();
    let mounts = || std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(mounts().contains(root.to_str().unwrap()));
    let _open = std::fs::File::create(disk.path().join("open")).unwrap();
    drop(disk);
    assert!(!mounts().contains(root.to_str().unwrap()));
    assert!(!root.exists());
}
