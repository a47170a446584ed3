defmodule Beamr.Host.Clean.Files do
  @moduledoc """
  Clean's `file_io`, in one directory and below.

      hosts: [{Beamr.Host.Clean.Files, root: "priv/data"}]

  Options: `root:`, a directory (required); `read_only: true` to have all changes refused;
  `max_bytes:`, what a file that is read may have (64 MiB unless given).

  Paths are relative to the root. Absolute ones and those with `..` are refused, and so are
  symbolic links that lead out of the root: each component is looked at, and a link is followed
  only to where it stays inside. Only regular files are read and written. Guests cannot make links,
  so no guest can get out. What is not guarded against is another program that puts a link in the
  place of a directory between the look and the opening, or makes hard links in the root: give
  guests a directory that only they write to.
  """

  use Beamr.Host, module: "env", types: Beamr.Host.Clean.Types

  @max_bytes 67_108_864
  @max_links 40

  @impl true
  def init(opts) do
    unless Keyword.keyword?(opts) and opts[:root],
      do: raise(ArgumentError, "#{inspect(__MODULE__)} needs root: with a directory")

    root = opts[:root] |> IO.chardata_to_string() |> Path.expand()

    case real(Path.split(root)) do
      {:ok, real, %{type: :directory}} ->
        %{
          root: real,
          read_only: Keyword.get(opts, :read_only, false),
          max_bytes: Keyword.get(opts, :max_bytes, @max_bytes)
        }

      _other ->
        raise ArgumentError, "#{inspect(__MODULE__)}: no directory at #{inspect(root)}"
    end
  end

  defp real(["/" | parts]), do: walk("/", [], parts, 0)

  # Some compilers pass the address for the result, which is answered nevertheless.
  @wasm "file_read (string) -> string"
  def file_read(_wasm, files, path) do
    with {:ok, real, %{type: :regular, size: size}} when size <= files.max_bytes <-
           find(files, path),
         {:ok, content} <- File.read(real) do
      content
    else
      _ -> :error
    end
  end

  @wasm "file_read (string, i32) -> string"
  def file_read(wasm, files, path, _result), do: file_read(wasm, files, path)

  @wasm "file_write (string, string) -> boolean"
  def file_write(_wasm, files, path, content), do: write(files, path, content, [])

  @wasm "file_append (string, string) -> boolean"
  def file_append(_wasm, files, path, content), do: write(files, path, content, [:append])

  @wasm "file_exists (string) -> boolean"
  def file_exists(_wasm, files, path), do: match?({:ok, _real, %{}}, find(files, path))

  @wasm "file_delete (string) -> boolean"
  def file_delete(_wasm, files, path) do
    # The directory is followed to where it really is; a link at the end is itself deleted.
    with false <- files.read_only,
         {:ok, parts} <- parts(path),
         {above, [last]} = Enum.split(parts, -1),
         {:ok, directory, %{type: :directory}} <- walk(files.root, [], above, 0),
         file = Path.join(directory, last),
         {:ok, %{type: type}} when type in [:regular, :symlink] <- File.lstat(file) do
      File.rm(file) == :ok
    else
      _ -> false
    end
  end

  defp write(files, path, content, modes) do
    with false <- files.read_only,
         {:ok, real, info} when info == nil or info.type == :regular <- find(files, path) do
      File.write(real, content, modes) == :ok
    else
      _ -> false
    end
  end

  # The real path in the root, with what is there: nil for what could be made there.
  defp find(%{root: root}, path) do
    with {:ok, parts} <- parts(path), do: walk(root, [], parts, 0)
  end

  defp parts(path) do
    parts = Path.split(path)

    if path == "" or String.contains?(path, <<0>>) or Path.type(path) != :relative or
         ".." in parts,
       do: :error,
       else: {:ok, parts}
  end

  # `done` are the components below the root so far, the last first; none of them is a link.
  defp walk(root, done, [], _links) do
    with {:ok, info} <- File.lstat(join(root, done)), do: {:ok, join(root, done), info}
  end

  defp walk(root, done, ["." | parts], links), do: walk(root, done, parts, links)
  defp walk(_root, [], [".." | _parts], _links), do: :error
  defp walk(root, [_ | done], [".." | parts], links), do: walk(root, done, parts, links)

  defp walk(root, done, [part | parts], links) do
    path = join(root, [part | done])

    case File.lstat(path) do
      {:ok, %{type: :symlink}} when links < @max_links ->
        follow(root, done, path, parts, links + 1)

      {:ok, %{type: :symlink}} ->
        :error

      {:ok, %{type: :directory}} ->
        walk(root, [part | done], parts, links)

      {:ok, info} when parts == [] ->
        {:ok, path, info}

      {:error, :enoent} when parts == [] ->
        {:ok, path, nil}

      _other ->
        :error
    end
  end

  defp follow(root, done, path, parts, links) do
    with {:ok, target} <- File.read_link(path) do
      case {Path.type(target), inside(Path.split(target), Path.split(root))} do
        {:relative, _} -> walk(root, done, Path.split(target) ++ parts, links)
        {:absolute, {:ok, below}} -> walk(root, [], below ++ parts, links)
        _outside -> :error
      end
    end
  end

  defp inside(target, []), do: {:ok, target}
  defp inside([part | target], [part | root]), do: inside(target, root)
  defp inside(_target, _root), do: :error

  defp join(root, done), do: Path.join([root | Enum.reverse(done)])
end
