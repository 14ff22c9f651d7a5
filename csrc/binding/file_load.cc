// loadFile: a byte range of a file into device memory, read by the backend's threads.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "args.h"
#include "functions.h"
#include "values.h"

namespace flash_gqa::binding {
namespace {

// Opened by the first thread that reads, so that a slow disk never blocks the loop.
class FileRange {
 public:
  FileRange(std::string path, int64_t position, int64_t bytes)
      : path_(std::move(path)), position_(position), bytes_(bytes) {}
  ~FileRange() {
    if (fd_ >= 0) close(fd_);
  }
  FileRange(const FileRange&) = delete;
  FileRange& operator=(const FileRange&) = delete;

  WaitStatus read(void* dst, size_t position, size_t bytes) {
    std::call_once(opened_, [this] { status_ = open_file(); });
    if (status_.code != nullptr) return status_;
    char* out = static_cast<char*>(dst);
    off_t at = static_cast<off_t>(position_) + static_cast<off_t>(position);
    while (bytes > 0) {
      const ssize_t got = pread(fd_, out, bytes, at);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return system_error("cannot read");
      if (got == 0) return too_short(at);
      out += got;
      at += got;
      bytes -= static_cast<size_t>(got);
    }
    return {};
  }

 private:
  WaitStatus open_file() {
    // A pipe or a device would block or never end: only regular files are read.
    fd_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat stat;
    if (fd_ < 0 || fstat(fd_, &stat) != 0) return system_error("cannot open");
    if (!S_ISREG(stat.st_mode))
      return {"INVALID_ARGUMENT", "loadFile: '" + path_ + "' is not a regular file"};
    if (position_ > stat.st_size || bytes_ > stat.st_size - position_)
      return too_short(stat.st_size);
    return {};
  }

  WaitStatus system_error(const char* what) const {
    return {"INVALID_ARGUMENT",
            std::string("loadFile: ") + what + " '" + path_ + "': " + std::strerror(errno)};
  }
  WaitStatus too_short(int64_t size) const {
    return {"CORRUPT_DATA", "loadFile: '" + path_ + "' ends at byte " + std::to_string(size) +
                                ", expected " + std::to_string(bytes_) + " bytes from " +
                                std::to_string(position_) + ": the file is cut short"};
  }

  const std::string path_;
  const int64_t position_;
  const int64_t bytes_;
  std::once_flag opened_;
  WaitStatus status_;
  int fd_ = -1;
};

// Keeps the memory until the load has ended, even if the tensor is disposed meanwhile.
struct LoadUnderWay {
  explicit LoadUnderWay(std::shared_ptr<Block> loaded) : block(std::move(loaded)) {
    ++block->device->loads;
  }
  ~LoadUnderWay() { --block->device->loads; }
  LoadUnderWay(const LoadUnderWay&) = delete;
  LoadUnderWay& operator=(const LoadUnderWay&) = delete;

  const std::shared_ptr<Block> block;
};

}  // namespace

Napi::Value load_file(Environment& environment, const Napi::CallbackInfo& info) {
  const DType to = dtype_at(info, 2, "to");
  if (!info[3].IsString()) fail_invalid("loadFile: path expected a string");
  std::string path = info[3].As<Napi::String>().Utf8Value();
  if (path.find('\0') != std::string::npos) fail_invalid("loadFile: path contains a null byte");
  const int64_t position = size_at(info, 4, "loadFile: position");
  const DType from = dtype_at(info, 5, "from");
  const int64_t elements = size_at(info, 6, "elements");
  const Place dst = place_at(environment, info, 0, "loadFile", to, elements);
  expect_convertible("loadFile", from, to);
  refuse_in_capture(*dst.block->device, "loadFile");

  const auto file =
      std::make_shared<FileRange>(std::move(path), position, product(elements, dtype_bytes(from)));
  return environment.completion().wait(
      {}, std::make_shared<LoadUnderWay>(dst.block), [&](WaitCallback done) {
        dst.block->device->backend->load(
            dst.ptr, to,
            [file](void* out, size_t at, size_t bytes) { return file->read(out, at, bytes); }, from,
            static_cast<size_t>(elements), std::move(done));
      });
}

}  // namespace flash_gqa::binding
