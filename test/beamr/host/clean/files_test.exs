defmodule Beamr.Host.Clean.FilesTest do
  use Beamr.CleanCase

  setup do
    base = Path.join(System.tmp_dir!(), "beamr-files-#{System.unique_integer([:positive])}")
    root = Path.join(base, "granted")
    File.mkdir_p!(Path.join(root, "sub"))
    File.write!(Path.join(base, "secret"), "secret")
    File.write!(Path.join(root, "a.txt"), "hällo")
    on_exit(fn -> File.rm_rf!(base) end)
    {:ok, base: base, root: root}
  end

  defp files(root, name, args, result, opts \\ []) do
    {own, opts} = Keyword.split(opts, [:read_only, :max_bytes])

    answers =
      for form <- Keyword.get(opts, :forms, [:pair]) do
        clean(name, args, result,
          hosts: [{Beamr.Host.Clean.Files, [root: root] ++ own}],
          form: form
        )
      end

    assert [answer] = Enum.uniq(answers)
    answer
  end

  test "file_read gives the content, in both forms", %{root: root} do
    assert files(root, "file_read", ["a.txt"], :string, forms: [:pair, :pointer]) == "hällo"
    assert files(root, "file_read", ["./sub/../a.txt"], :string) == ""
    assert files(root, "file_read", ["./a.txt"], :string) == "hällo"
  end

  test "file_read may have a third parameter", %{root: root} do
    assert files(root, "file_read", ["a.txt", {:i32, 500}], :string) == "hällo"
  end

  test "file_read gives nothing for what is no file", %{root: root} do
    for path <- ["none", "sub", "none/a.txt", "a.txt/b", "", ".", "a\0b"] do
      assert files(root, "file_read", [path], :string) == ""
    end
  end

  test "file_read refuses what is too large", %{root: root} do
    assert files(root, "file_read", ["a.txt"], :string, max_bytes: 6) == "hällo"
    assert files(root, "file_read", ["a.txt"], :string, max_bytes: 5) == ""
  end

  test "file_write writes", %{root: root} do
    assert files(root, "file_write", ["sub/new", "one"], :i32) == 1
    assert files(root, "file_write", ["sub/new", "two"], :i32, forms: [:pair, :pointer]) == 1
    assert File.read!(Path.join(root, "sub/new")) == "two"
    assert files(root, "file_write", ["none/new", "x"], :i32) == 0
    assert files(root, "file_write", ["sub", "x"], :i32) == 0
  end

  test "file_append appends", %{root: root} do
    assert files(root, "file_append", ["log", "one,"], :i32) == 1
    assert files(root, "file_append", ["log", "two"], :i32) == 1
    assert File.read!(Path.join(root, "log")) == "one,two"
  end

  test "file_exists looks", %{root: root} do
    for {path, there} <- [{"a.txt", 1}, {"sub", 1}, {"none", 0}, {"none/a", 0}, {"../secret", 0}] do
      assert files(root, "file_exists", [path], :i32) == there
    end
  end

  test "file_delete deletes files only", %{root: root} do
    assert files(root, "file_delete", ["a.txt"], :i32) == 1
    refute File.exists?(Path.join(root, "a.txt"))
    assert files(root, "file_delete", ["a.txt"], :i32) == 0
    assert files(root, "file_delete", ["sub"], :i32) == 0
  end

  test "read-only files are not changed", %{root: root} do
    assert files(root, "file_write", ["new", "x"], :i32, read_only: true) == 0
    assert files(root, "file_append", ["a.txt", "x"], :i32, read_only: true) == 0
    assert files(root, "file_delete", ["a.txt"], :i32, read_only: true) == 0
    assert files(root, "file_read", ["a.txt"], :string, read_only: true) == "hällo"
    refute File.exists?(Path.join(root, "new"))
  end

  test "no path leads out", %{root: root, base: base} do
    File.ln_s!("..", Path.join(root, "up"))
    File.ln_s!("../secret", Path.join(root, "link"))
    File.ln_s!(Path.join(base, "secret"), Path.join(root, "absolute"))
    File.ln_s!("/", Path.join(root, "sub/everything"))
    File.ln_s!("../../granted/../secret", Path.join(root, "sub/around"))
    File.ln_s!("loop", Path.join(root, "loop"))
    File.ln_s!("../new", Path.join(root, "dangling"))

    for path <- [
          "../secret",
          "sub/../../secret",
          Path.join(base, "secret"),
          Path.join(root, "a.txt"),
          "up/secret",
          "link",
          "absolute",
          "sub/everything/etc/passwd",
          "sub/around",
          "loop",
          "~/secret"
        ] do
      assert files(root, "file_read", [path], :string) == ""
      assert files(root, "file_exists", [path], :i32) == 0
      assert files(root, "file_write", [path, "x"], :i32) == 0
      assert files(root, "file_append", [path, "x"], :i32) == 0
    end

    assert files(root, "file_write", ["dangling", "x"], :i32) == 0
    assert files(root, "file_delete", ["up/secret"], :i32) == 0
    assert files(root, "file_delete", ["../secret"], :i32) == 0
    assert File.read!(Path.join(base, "secret")) == "secret"
    refute File.exists?(Path.join(base, "new"))
  end

  test "links are followed inside", %{root: root} do
    File.ln_s!("../a.txt", Path.join(root, "sub/link"))
    File.ln_s!(Path.join(root, "sub"), Path.join(root, "dir"))
    assert files(root, "file_read", ["sub/link"], :string) == "hällo"
    assert files(root, "file_read", ["dir/link"], :string) == "hällo"
    # The link goes, not what it leads to.
    assert files(root, "file_delete", ["dir/link"], :i32) == 1
    assert File.exists?(Path.join(root, "a.txt"))
  end

  test "the root itself may be behind a link", %{base: base} do
    File.ln_s!("granted", Path.join(base, "alias"))
    assert files(Path.join(base, "alias"), "file_read", ["a.txt"], :string) == "hällo"
  end

  test "what would block is not opened", %{root: root} do
    {_output, 0} = System.cmd("mkfifo", [Path.join(root, "fifo")])
    assert files(root, "file_read", ["fifo"], :string) == ""
    assert files(root, "file_write", ["fifo", "x"], :i32) == 0
  end

  test "bad UTF-8 is replaced", %{root: root} do
    File.write!(Path.join(root, "bad"), <<"a", 0xFF>>)
    assert files(root, "file_read", ["bad"], :string) == "a\uFFFD"
  end

  test "a root is needed, and must be there", %{base: base} do
    for arg <- [nil, [], [root: Path.join(base, "none")], [root: Path.join(base, "secret")]] do
      assert_raise ArgumentError, fn ->
        Beamr.instantiate("(module)", hosts: [{Beamr.Host.Clean.Files, arg}])
      end
    end
  end
end
