defmodule Mix.Tasks.Beamr.InspectTest do
  use Beamr.Case, async: true

  import ExUnit.CaptureIO

  @moduletag :tmp_dir

  @guest """
  (module $calculator
    (import "env" "log" (func (param i32 i64)))
    (import "env" "limit" (global i32))
    (memory (export "memory") 1 4)
    (memory (export "scratch") 2)
    (table (export "t") 1 10 funcref)
    (global (export "g") (mut f64) (f64.const 0))
    (func (export "add") (param i32 i32) (result i32) (i32.const 0))
    (func $start unreachable)
    (start $start)
    (@custom "note" "hello"))
  """

  defp inspect_file(dir, contents) do
    path = Path.join(dir, "guest.wasm")
    File.write!(path, contents)
    {path, capture_io(fn -> Mix.Tasks.Beamr.Inspect.run([path]) end)}
  end

  # The cells of the rows under a title.
  defp rows(output, title) do
    [_before, rest] = String.split(output, "#{title}:\n", parts: 2)

    for line <- String.split(rest, "\n") |> Enum.take_while(&String.starts_with?(&1, "  ")) do
      line |> String.trim() |> String.split(~r/  +/)
    end
  end

  test "shows the file's path and the module's name", %{tmp_dir: dir} do
    {path, output} = inspect_file(dir, @guest)
    assert output =~ path
    assert output =~ "calculator"
  end

  test "lists imports with their types", %{tmp_dir: dir} do
    {_path, output} = inspect_file(dir, @guest)

    assert rows(output, "imports") == [
             ["env log", "function (i32, i64) -> ()"],
             ["env limit", "global i32"]
           ]
  end

  test "lists exports with their types and limits", %{tmp_dir: dir} do
    {_path, output} = inspect_file(dir, @guest)

    assert rows(output, "exports") == [
             ["memory", "memory of 1 to 4 pages (i32)"],
             ["scratch", "memory of 2 or more pages (i32)"],
             ["t", "table of 1 to 10 funcref (i32)"],
             ["g", "mutable global f64"],
             ["add", "function (i32, i32) -> (i32)"]
           ]
  end

  test "lists custom sections with their sizes", %{tmp_dir: dir} do
    {_path, output} = inspect_file(dir, @guest)
    assert ["note", "5 bytes"] in rows(output, "custom sections")
  end

  test "columns are aligned", %{tmp_dir: dir} do
    {_path, output} = inspect_file(dir, @guest)
    lines = output |> String.split("\n") |> Enum.filter(&(&1 =~ ~r/^  env /))
    assert [column] = lines |> Enum.map(&column/1) |> Enum.uniq()
    assert column > 0
  end

  defp column(line), do: :binary.match(line, [" function", " global"]) |> elem(0)

  test "names with control characters neither break the table nor reach the terminal", context do
    source = ~S|(module (import "env" "a\0ab\1b[31m" (func)) (func (export "x\0ay")))|
    {_path, output} = inspect_file(context.tmp_dir, source)
    refute output =~ "\e"
    assert length(rows(output, "imports")) == 1
    assert length(rows(output, "exports")) == 1
  end

  test "says so when there is nothing", %{tmp_dir: dir} do
    {_path, output} = inspect_file(dir, "(module)")
    assert output =~ "a module without a name"
    for title <- ["imports", "exports", "custom sections"], do: assert(output =~ "#{title}: none")
  end

  test "reads binary files", %{tmp_dir: dir} do
    {_path, output} = inspect_file(dir, <<0, "asm", 1, 0, 0, 0>>)
    assert output =~ "exports: none"
  end

  test "shows the compiled guest of this repository" do
    output = capture_io(fn -> Mix.Tasks.Beamr.Inspect.run(["test/guests/demo.wasm"]) end)

    assert ["memory", "memory of " <> _] =
             Enum.find(rows(output, "exports"), &(hd(&1) == "memory"))
  end

  test "a file that is not there is an error", %{tmp_dir: dir} do
    assert_raise Mix.Error, ~r/cannot be read: no such file/, fn ->
      Mix.Tasks.Beamr.Inspect.run([Path.join(dir, "none.wasm")])
    end
  end

  test "a file that is no module is an error that names it", %{tmp_dir: dir} do
    for contents <- ["", "hello", <<0, "asm", 9, 9, 9, 9>>, <<255, 254>>] do
      path = Path.join(dir, "bad.wasm")
      File.write!(path, contents)

      assert_raise Mix.Error, ~r/bad\.wasm: /, fn -> Mix.Tasks.Beamr.Inspect.run([path]) end
    end
  end

  test "anything but one file is wrong usage" do
    for args <- [[], ["a", "b"]] do
      assert_raise Mix.Error, ~r/usage/, fn -> Mix.Tasks.Beamr.Inspect.run(args) end
    end
  end
end
